"""What tiers that several machines share have in common, whatever engine holds the pages."""
