"""Small matrices beside a backbone's linear layers, which learn in its place: LoRA, DoRA, QLoRA (peft)."""
