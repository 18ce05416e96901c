"""Chats and texts as tokens: templates, turns, what ends an answer."""
