"""Layer-wise training inside other people's trainers; nothing here is imported by the rest of the package."""
