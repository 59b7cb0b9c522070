"""The centre: journal, admission, strategies, merge, announcements, audit."""
