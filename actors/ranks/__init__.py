"""Process groups that train and score: a thin Ray actor a rank, and the group as a loop sees it."""
