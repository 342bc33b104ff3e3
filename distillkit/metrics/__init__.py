"""What answers are judged by: one file a family, each a thin layer over the library that defines it."""
