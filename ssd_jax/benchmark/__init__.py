"""How fast a config runs on the machine at hand, and how far that is from what it could."""
