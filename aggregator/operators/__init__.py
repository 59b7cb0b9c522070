"""Answers to operators' commands and queries."""
