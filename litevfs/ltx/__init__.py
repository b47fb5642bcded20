"""The LTX file format, version 3: bytes to values and back, without I/O."""
