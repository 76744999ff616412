"""RD, reprogramming distillation: a student and what a frozen teacher's features are made of for it."""
