"""Published files into folders of tensorflow-datasets, without TensorFlow."""
