"""What schemathesis cannot know: which bytes are an image. Random ones are refused; test_hostile_images.py sends those."""

import schemathesis
from hypothesis import strategies as st
from live import of_class
from tiny_model import COLOURS

IMAGES = st.lists(st.sampled_from([of_class(label) for label in COLOURS]), min_size=1, max_size=3)
for media_type in ("image/jpeg", "image/png", "image/bmp", "image/tiff"):
    schemathesis.openapi.media_type(media_type, IMAGES)
