"""The sandbox's layers for Linux: namespaces, Landlock and seccomp."""
