"""Parts that train-temporal and finetune share: settings, data, session, log."""
