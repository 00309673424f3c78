"""Write a trained model so that it runs without PyTorch."""
