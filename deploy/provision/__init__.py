"""Provisioning: from a project file to startup kits, and enrolment of members who join later."""
