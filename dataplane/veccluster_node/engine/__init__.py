"""What searches: rows, generations, graphs, views."""
