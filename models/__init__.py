"""Programs: each file is one diffusion model, written as a user would write it. `dpm models` lists them."""
