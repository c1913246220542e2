"""The sandbox's layer for any system: CPython inside WebAssembly."""
