"""The page: results as one HTML file that opens with no network, or as data that a server hands to the same bundle."""
