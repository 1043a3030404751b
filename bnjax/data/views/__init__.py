"""What a network sees of an image: made on the host from encoded images, or on the device."""
