"""What users see of a running volume: plain data for programs, tables for people."""
