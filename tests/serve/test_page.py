"""The page in a browser: a picture is dropped, boxes are seen."""

import shutil

import pytest
from running import painted_server, picture
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

# A browser that asks for nothing but the page.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1000,800",
)
DROP = """
const transfer = new DataTransfer();
transfer.items.add(new File([new Uint8Array(arguments[0])], "dropped"));
document.getElementById("drop").dispatchEvent(
  new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
"""
PIXEL = """
return [...document.getElementById("picture").getContext("2d")
  .getImageData(arguments[0], arguments[1], 1, 1).data].slice(0, 3)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with painted_server(tmp_path_factory.mktemp("server"), token="key") as running:
        yield running.wait_until_healthy()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with webdriver.Chrome(options=options, service=service) as browser:
        yield browser


def shown(browser, name):
    return browser.find_element(By.ID, name).text


def wait(browser, condition):
    WebDriverWait(browser, 20, poll_frequency=0.02).until(lambda _: condition())


def test_a_picture_is_dropped_and_boxes_are_seen(server, browser, tmp_path):
    browser.get(server.url)
    browser.execute_script(DROP, list(picture(204, size=(90, 120))))
    wait(browser, lambda: "Authorization" in shown(browser, "status"))
    browser.find_element(By.ID, "token").send_keys("key")

    browser.execute_script(DROP, list(picture(204, size=(90, 120))))
    wait(browser, lambda: "120 × 90 pixels" in shown(browser, "status"))
    assert shown(browser, "found") == "red 0.800"
    red = [204, 0, 0]
    assert browser.execute_script(PIXEL, 60, 60) == red
    # The box of class 1 has a score of 0.125, and its left edge at a quarter of the width.
    assert browser.execute_script(PIXEL, 30, 70) == red
    score = browser.find_element(By.ID, "score")
    browser.execute_script(
        "arguments[0].value = 0.1; arguments[0].dispatchEvent(new Event('input'))", score
    )
    assert shown(browser, "found").splitlines() == ["red 0.800", "middle 0.125"]
    assert browser.execute_script(PIXEL, 30, 70) != red

    path = tmp_path / "chosen.jpg"
    path.write_bytes(b"no picture")
    browser.find_element(By.ID, "file").send_keys(str(path))
    wait(browser, lambda: "expected a whole JPEG or PNG" in shown(browser, "status"))
    assert shown(browser, "found") == ""
    focused = "arguments[0].focus(); return document.activeElement.id"
    chooser = browser.find_element(By.ID, "file")
    assert browser.execute_script(focused, chooser) == "file"
    # The same file can be chosen again.
    browser.execute_script(
        "arguments[0].addEventListener('click', event => event.preventDefault());"
        "arguments[0].click()",
        chooser,
    )
    assert chooser.get_property("files") == []


def test_the_interface_is_shown(server, browser):
    browser.get(f"{server.url}/docs")
    wait(browser, lambda: "POST /invocations" in shown(browser, "operations"))
    assert "Requires the token." in shown(browser, "operations")
    refused = [told for told in browser.get_log("browser") if "Content Security" in told["message"]]
    assert not refused
