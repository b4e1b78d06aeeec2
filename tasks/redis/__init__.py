"""What the other rooms ask Redis with: its clock, pages, kept connections, its errors translated. Knows no lane."""
