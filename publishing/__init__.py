"""What `publish.py` is made of: privacy at build time, measurements for the card, the card, and the sending."""
