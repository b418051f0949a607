"""How good a trained model is: HellaSwag, the loss on any corpus, and the door to lm-evaluation-harness."""
