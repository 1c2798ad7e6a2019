"""Speed, printed and written down; nothing here decides a test."""
