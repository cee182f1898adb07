"""Chats: what is asked for, the prompt it becomes, and what the answer amounts to."""
