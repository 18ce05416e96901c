"""What the loops ask of roles, and what passes between them; Ray and fakes stand behind alike."""
