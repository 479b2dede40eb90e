"""Trains a small classifier of handwritten digits up to so many steps; started again, it goes on from where it was.

python train_keras.py 500
"""

import sys

import keras
from sklearn.datasets import load_digits

import holdfast

STEPS_PER_EPOCH = 25  # 1600 images in batches of 64

epochs = int(sys.argv[1]) // STEPS_PER_EPOCH
digits = load_digits()
x, y = (digits.data[:1600] / 16).astype("float32"), digits.target[:1600]

run = holdfast.Run("runs/digits_keras", seed=0)
model = keras.Sequential(
    [
        keras.layers.Input((64,)),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dropout(0.1),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x, y, batch_size=64, epochs=epochs, verbose=2, callbacks=[holdfast.keras.Callback(run)])
loss, accuracy = model.evaluate(x, y, verbose=0)
print(f"{run.progress.epoch} epochs are done; accuracy {accuracy:.4f}")
run.close()
