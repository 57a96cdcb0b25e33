"""Models whose circuit is known: built by hand, or trained for one purpose."""
