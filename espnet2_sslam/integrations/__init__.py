"""Other hosts of our models; each may be missing, the core never imports them."""
