"""The commands: each reads its arguments, calls the client or the local runtime, and prints."""
