"""What stands on the library: each folder could be deleted without touching another, and nothing in the library imports one."""
