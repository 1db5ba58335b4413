"""Archives, tables of images and buckets that cells are taken in from. It imports `core` and `cells`."""
