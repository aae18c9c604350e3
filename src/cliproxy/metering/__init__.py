"""What a final body asks for and what an answer used, read by whoever holds the credentials. It translates nothing and imports no translator."""
