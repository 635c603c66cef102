"""From a network and images to numbers, and the table of all of them."""
