"""Every constant with a unit that the package uses, named once.

They stand apart from features.py because torch, which that needs, takes 650 MiB: the
preparation of long lists does without it.
"""

SAMPLE_RATE = 16_000  # Hz
FRAME_LENGTH = 400  # samples: 25 ms
FRAME_SHIFT = 160  # samples: 10 ms
FRAME_SHIFT_MS = 10
FFT_SIZE = 512  # samples
NUM_MEL_BINS = 128
LOWEST_FREQUENCY = 20.0  # Hz
PRE_EMPHASIS = 0.97
PATCH_SIZE = 16  # frames and mel bins
TIME_SHIFTS = (1, 2, 4, 8, 16)  # passes whose patches begin between one another's
MIN_FRAMES = 48  # 3 time patches: the least in which a mixture has a mixed one
PATCHES_PER_STEP = NUM_MEL_BINS // PATCH_SIZE  # frequency patches of one time patch
AUDIOSET_MEAN = -4.268  # log-mel, over AudioSet (EAT and SSLAM)
AUDIOSET_STD = 4.569
