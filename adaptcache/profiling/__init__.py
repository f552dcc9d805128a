"""Full runs on calibration prompts: what is measured, kept and taken up again."""
