"""The web page on the admin port: its files, and what it does in a real browser."""
