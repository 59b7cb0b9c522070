"""The slow work on threads: fetch a version, train, form and seal an update, upload it."""
