"""The ground floor: every other package may import these modules, and they import none of the other packages."""
