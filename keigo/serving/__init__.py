"""The daemon of one mount, and what it does when asked."""
