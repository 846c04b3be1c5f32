"""Messages and plans as bytes. No I/O."""
