"""The TorchModel operator: watches TorchModel resources and reconciles what serves them. Never imports torch."""
