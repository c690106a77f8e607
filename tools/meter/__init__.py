"""Meters from the laptop: what is known of them, reading, finding and playing them."""
