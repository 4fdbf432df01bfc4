"""The ground floor: what every room may import and that imports none of them."""
