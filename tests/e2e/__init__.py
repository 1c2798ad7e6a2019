"""Tests of servers and commands as users run them."""
