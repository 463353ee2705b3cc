"""Keys and items, written once over the Table port."""
