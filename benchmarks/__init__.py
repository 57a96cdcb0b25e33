"""Measurements that carry a bar, each printing one document."""
