"""What features are worth: kNN, linear probe, fine-tuning, comparison with the champion, maps.

Reads trained models; nothing here changes the pretrained encoder.
"""

from deploy.moved import names_of

__getattr__ = names_of("simclr_core.evaluation.images")
