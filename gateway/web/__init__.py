"""The web page on the admin port."""
