"""What has been published of the heads of some models, and whether an atlas agrees."""
