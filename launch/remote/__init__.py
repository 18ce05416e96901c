"""What commands about clusters elsewhere share."""
